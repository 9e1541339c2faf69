"""The HTTP side: the schema, responses, server-sent events, starting and stopping a server."""
