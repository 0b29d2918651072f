"""Which name does this visitor want? Octets in, values out; and the octets of every refusal.

hostname.py     which octets may be the name of a host, in a ClientHello and in a Host field alike
clienthello.py  the server_name and ALPN of a TLS ClientHello, however it was cut
peek.py         the first octets on the TLS port: a ClientHello or the preface of a lane
httphead.py     the head of one HTTP/1 request, read strictly
framing.py      where the body of a request ends
requests.py     all requests of one visitor's connection: the same host in each, or refused
forwarded.py    what a request tells the origin about its visitor: X-Forwarded-For and Forwarded
refusal.py      what a visitor is told who cannot be served: TLS alerts, HTTP pages, the redirect to https
"""
