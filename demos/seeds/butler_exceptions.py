from butler_mesh.compat import butler

client = butler.Client('tcp://127.0.0.1:5555').rpc('api.images')
try:
    client.resize_image()
except Exception as e:
    print('%s: %s' % (type(e).__name__, e))
client.close()
