from butler_mesh.compat.majortomo import Worker, WorkerRequestsIterator

requests = WorkerRequestsIterator(Worker('tcp://127.0.0.1:5555', 'my-service'))
requests.stop_on_signal()

for frames in requests:
    *parts, last = ([frame] for frame in frames)
    requests.send_reply_from_iterable(parts, final=last)
