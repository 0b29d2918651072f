"""One Twisted application: authoritative DNS server, tunnel server and tunnel client.

    dns/        authoritative DNS on values: zones, live records over them, questions and finished answers
    ingress/    which name does this visitor want: TLS ClientHello, HTTP head, and the octets of every refusal
    tunnel/     a client and a server: messages, sessions, lanes, certificates, routes, discovery
    fleet/      servers and nameservers: the watch, who is a member, which records follow from that
    service/    the reactor: sockets, timers, disk. Nothing else touches them
    settings.py TOML and options -> one small frozen value per service
    tap.py, client_tap.py   the two twistd commands: the only wiring
    cli.py      the commands an operator types beside a running appliance
"""

__version__ = "0.1.0"
