"""The floor: what every rung of the ladder stands on and no rung teaches.

A rung owns when the model runs and how a token gets back to the client. Everything that stays
the same from rung to rung is here: the decoder, sampling, tokenizing, the request schema, the
command line, starting and stopping a server, the measuring client and the terminal display.
The floor never imports a rung.
"""
