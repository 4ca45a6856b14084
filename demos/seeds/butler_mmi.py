from butler_mesh.compat import butler

client = butler.Client('tcp://127.0.0.1:5555')
response = client.send('mmi.api.images')
if response[1] == '200':
    print('someone is around to handle %s' % response[0])
else:
    print(response)
client.close()
