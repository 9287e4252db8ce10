"""The image's health check: whether the gateway in this container answers on /live."""

import os
import ssl
import sys
import urllib.request

scheme = "https" if os.environ.get("GATEWAY_TLS_CERTIFICATE") else "http"
unverified = ssl.create_default_context()  # the certificate names the host that callers see, not the loopback address
unverified.check_hostname = False
unverified.verify_mode = ssl.CERT_NONE
try:
    url = f"{scheme}://127.0.0.1:{os.environ.get('GATEWAY_PORT', '8080')}/live"
    urllib.request.urlopen(url, timeout=4, context=unverified).close()
except OSError as error:
    sys.exit(f"{url}: {error}")
