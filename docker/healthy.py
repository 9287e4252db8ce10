"""The image's health check: whether the gateway in this container answers on /live."""

import os
import ssl
import sys
import urllib.request

host = os.environ.get("GATEWAY_HOST") or "0.0.0.0"  # noqa: S104 - as the Dockerfile has it
host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
host = f"[{host}]" if ":" in host else host
scheme = "https" if os.environ.get("GATEWAY_TLS_CERTIFICATE") else "http"
unverified = ssl.create_default_context()  # the certificate names the host that callers see, not the loopback address
unverified.check_hostname = False
unverified.verify_mode = ssl.CERT_NONE
# An engine gives its containers the proxy of the house, which knows no loopback address of theirs.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unverified))
try:
    url = f"{scheme}://{host}:{os.environ.get('GATEWAY_PORT') or '8080'}/live"
    opener.open(url, timeout=4).close()
except OSError as error:
    sys.exit(f"{url}: {error}")
