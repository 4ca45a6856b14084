from butler_mesh.compat import butler

worker = butler.Service('tcp://127.0.0.1:5556', 'api.images')


class RPCService(object):
    def resize_image(self, name, size):
        return 'resized image'


worker.register(RPCService())
worker.run()
