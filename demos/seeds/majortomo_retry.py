import logging
import time

from butler_mesh.compat import majortomo
from butler_mesh.compat.majortomo import Client

while True:
    with Client(broker_url='tcp://127.0.0.1:5555') as client:
        try:

            client.send(b'my-service', b'frame1', b'frame2')
            reply = client.recv_all_as_list(timeout=10.0)
            break
        except majortomo.error.Timeout:
            logging.warning("Timed out waiting for a reply from broker, reconnecting")
            time.sleep(1.0)
            continue

print(reply)
