from butler_mesh.compat.majortomo import Client


def do_something_with_reply_part(part):
    print(part, flush=True)


with Client(broker_url='tcp://127.0.0.1:5555') as client:
    client.send(b'my-service', b'frame1', b'frame2', b'frame3')
    for part in client.recv_all(timeout=5.0):
        do_something_with_reply_part(part)
