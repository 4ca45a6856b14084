import os
import time
import logging
from butler_mesh.compat.servicebus.logging_service import LoggingService


def write_pid():
    with open('/var/run/application.pid', 'a+') as fp:
        fp.write('%s\n' % str(os.getpid()))


LoggingService.start_logging_server('/var/log/application.log', 9999, write_pid)
time.sleep(1)
LoggingService.init_logging(9999, logging.INFO)
# Other codes that fork others processes...
