"""The tunnel client: beside a web server, joined to every tunnel server.

joining     which servers it is joined to; the service that holds all the others
resolver    where the DNS says that servers are
links       one server address, dialled for ever, and the session over it
successors  two links to one server for a moment, when the certificate is another
expiring    says that it ends
tls         who is believed to be a server
lanes       the connections kept ready for visitors
visits      one visitor, from the header of his lane to the join with his origin
origins     which origin, and where
dial        one non-blocking connect
instance    who this client is, across restarts
complaints  what the log was told already
"""
