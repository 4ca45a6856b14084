from butler_mesh.compat.arpc import mq

sc = mq.ServiceCaller(mq.AMQPOperations(useack=True, persistent=True), 'example', want_replies=True)
res = sc.send_request({'c': 'add', 'x': 4, 'y': 8})
print(res)
