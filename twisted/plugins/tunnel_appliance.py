"""The two twistd commands by name; what they do is in appliance/tap.py and appliance/client_tap.py."""

from twisted.application.service import ServiceMaker

tunnel_appliance = ServiceMaker(
    "Tunnel appliance",
    "appliance.tap",
    "Authoritative DNS server and tunnel server for web servers without a public address.",
    "tunnel-appliance",
)
tunnel_client = ServiceMaker(
    "Tunnel client",
    "appliance.client_tap",
    "Joins a web server without a public address to every tunnel server.",
    "tunnel-client",
)
