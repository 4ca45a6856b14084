from butler_mesh.compat import butler

worker = butler.Service('tcp://127.0.0.1:5556', 'api.images')

reply = None
while True:
    request = worker.recv(reply)
    reply = None  # reset state
    if not request:
        continue
    print(request)  # do work
    reply = 'hello world'
