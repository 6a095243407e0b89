"""Server, devices and the engine in one process; one device alone. No mathematics here."""
