"""Engines: how requests and replies travel. Drivers are imported when an address names them."""
