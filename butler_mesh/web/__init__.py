"""HTTP: request and reply objects, web handlers, templates and the WSGI front."""
