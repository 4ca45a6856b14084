import logging

from butler_mesh.compat import butler

logging.basicConfig(level=logging.INFO)
log = logging.getLogger('sink')

sink = butler.Sink('tcp://*:5558')
while True:
    msg = sink.get_message()
    log.info('MSG received: %s' % msg)
