from butler_mesh.compat.arpc import mq


class ExampleService(object):
    def c_add(self, req):
        return {'res': req['x'] + req['y']}


# Uses default connection parameters (localhost)
amqp = mq.AMQPOperations(useack=True, persistent=True)
server = mq.make_json_server(amqp, 'example', ExampleService())
server.loop()
