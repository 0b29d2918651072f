"""The web server behind every tunnel: one nginx, with TLS (every handshake a full one) and without."""

from __future__ import annotations

from pathlib import Path

import trustme

from tests.end_to_end.programs import Process, free_port, need, wait_for
from tests.end_to_end.site import ZONE

NAME = f"www.{ZONE}"
BULK_OCTETS = 2 << 30
SMALL_FILE_OCTETS = 16 << 10

# One worker, as each end of the peers that can be told so has one thread. What is uploaded to /sink is read
# and thrown away.
CONFIGURATION = """\
daemon off; pid {directory}/nginx.pid; error_log stderr warn; worker_processes 1; master_process off;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; client_max_body_size 0; server_tokens off;
  keepalive_requests 1000000000; keepalive_timeout 3600s; lingering_time 600s; lingering_timeout 60s;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  ssl_protocols TLSv1.3; ssl_session_cache off; ssl_session_tickets off;
  server {{
    listen 127.0.0.1:{tls} ssl backlog=4096;
    listen 127.0.0.1:{http} backlog=4096;
    ssl_certificate {directory}/cert.pem; ssl_certificate_key {directory}/key.pem;
    location / {{ return 200 "hello world\\n"; }}
    location /files/ {{ alias {directory}/files/; }}
    location /sink {{ return 204; }}
  }}
}}
"""


class WebServer:
    """It, running; ``big`` is a file of `BULK_OCTETS` zeros that takes no place on the disk."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.tls = free_port("tcp")
        self.http = free_port("tcp")
        certificate = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert(
            f"*.{ZONE}", key_type=trustme.KeyType.ECDSA
        )
        certificate.private_key_pem.write_to_path(directory / "key.pem")
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(directory / "cert.pem", append=True)
        (directory / "files").mkdir()
        self.big = directory / "files" / "big"
        for path, octets in ((self.big, BULK_OCTETS), (directory / "files" / "small", SMALL_FILE_OCTETS)):
            with path.open("wb") as file:
                file.truncate(octets)
        text = CONFIGURATION.format(directory=directory, tls=self.tls, http=self.http)
        (directory / "nginx.conf").write_text(text)
        command: list[str | Path] = [need("nginx"), "-p", directory, "-e", "stderr", "-c"]
        command.append(directory / "nginx.conf")
        self.process = Process(command, directory / "log")
        wait_for((directory / "nginx.pid").exists, 10, "nginx")

    def kill(self) -> None:
        self.process.kill()
