from butler_mesh.compat.servicebus.service import ServiceBus
from butler_mesh.compat.servicebus.configuration import Configuration


class AddService:
    def on_call(self, request, response):
        params = request.get_params()
        ret = 0
        for i in params:
            ret += int(i)
        response.send(ret)


config = Configuration({
    'hosts': ['localhost'],
    'user': 'admin',
    'password': '123456',
    'use_ssl': False,
    'node_name': "NODE-01",
    'secret_token': 'secret token',
})
sbus = ServiceBus(config)
sbus.add_rpc_service("math", "add", AddService())
sbus.run_services()
