"""A tunnel client and a tunnel server, without a wire: docs/reference/protocol.md in code.

names         how a host name is written
discovery     the TXT of servers, both ways, and which of them to join
certificates  who is who: what the CA issues, and why a certificate is refused; crl: what it took back
invitation    the one file that lets a client, or a further server, join
lines         JSON lines with bounds; messages: the words of a link
session       what both ends of a link say, and when; liveness: whether the other end lives
lane          how a lane begins; proxyheader: who its visitor is; pool: how many lanes wait for visitors
routes        the sessions of each name at a server, and whose turn it is
"""
