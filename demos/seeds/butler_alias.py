from butler_mesh.compat import butler

worker = butler.Service('tcp://127.0.0.1:5556', 'api.images')


def resize_image(name, size):
    return 'resized image'


worker.register_function(resize_image, 'resize')
worker.run()
