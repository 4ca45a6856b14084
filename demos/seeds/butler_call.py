from butler_mesh.compat import butler

client = butler.Client('tcp://127.0.0.1:5555')
response = client.call('api.images', {
    'method': 'resize_image',
    'uri': 'test.jpeg',
    'size': '150x180'
})
print(response)
client.close()
