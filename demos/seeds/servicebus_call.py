from butler_mesh.compat.servicebus.configuration import Configuration
from butler_mesh.compat.servicebus.sender import Sender

config = Configuration({
    'hosts': ['localhost'],
    'user': 'admin',
    'password': '123456',
    'use_ssl': False,
    'node_name': "NODE-01",
    'secret_token': 'secret token',
})
sender = Sender(config)
ret = sender.call('NODE-01.math.add', [1, 2])
print(ret)
