from butler_mesh.compat import butler

client = butler.Client('tcp://127.0.0.1:5555').rpc('api.images')
print(client.resize_image('test.jpeg', '150x180'))
# ..other calls
client.close()
