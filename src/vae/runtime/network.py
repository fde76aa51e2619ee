"""What is wrong with a network, in words that name the setting which helps."""

import ipaddress
import re
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests
import urllib3

OTHER_HOST = (62, 64)  # OpenSSL's codes for a certificate of another name or IP address
REFUSED, LOGIN = (403, 407), 511  # HTTP status of a proxy that refuses, and of a network that demands a login
ANOTHER = "something in this network answers in its place; log in to it in a browser, or use another DNS server"


class WebPage(ValueError):
    """An HTML page in place of a file."""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and the errors that led to it, which each library keeps in another place."""
    while error is not None:
        yield error
        inside = [getattr(error, "reason", None), *error.args, error.__cause__, error.__context__]
        error = next((item for item in inside if isinstance(item, BaseException)), None)


def shown(text: str) -> str:
    """A text without the names and passwords of the addresses in it."""
    text = re.sub(r"://\S*@", "://", text)  # a password may have a slash or an at sign
    return re.sub(r"([?&;]\w*(?:pass|pwd|token|secret|key|odbc_connect)\w*=)[^&;\s]*", r"\1***", text, flags=re.I)


def _proxy(url: str) -> str:
    """Host and port of the proxy for a URL, without its password. Empty if there is none."""
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url)) or ""
    return proxy.rpartition("@")[2].rpartition("//")[2].strip("/")


def _inner_addresses(host: str) -> list[str]:
    """The IP addresses of a name, if all of them are inside a private network or this machine."""
    try:
        found = {str(item[4][0]).partition("%")[0] for item in socket.getaddrinfo(host, None)}
    except OSError:
        return []
    outer = [address for address in found if ipaddress.ip_address(address).is_global]
    return [] if outer or host in found else sorted(found)


def fault(error: BaseException, url: str, public: bool = False) -> str | None:
    """What is wrong on the way to a URL and what the user can do, or None if the server is just away.
    A `public` host has no address inside a private network, so DNS that gives one is wrong."""
    chain, proxy = list(_chain(error)), _proxy(url)
    host, scheme = urlsplit(url).hostname or url, urlsplit(url).scheme.upper()
    setting = f"correct {scheme}_PROXY, or add {host} to NO_PROXY"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if any("TLS CA certificate bundle" in str(item) for item in chain):
        return f"{str(error).rpartition(':')[2].strip()}: no such certificate file; correct REQUESTS_CA_BUNDLE"
    if status == LOGIN:
        return f"HTTP {LOGIN}: this network demands a login; open any page in a browser first"
    if proxy and status in REFUSED:
        return f"HTTP {status}: the proxy {proxy} refuses; {setting}"
    if isinstance(error, requests.exceptions.InvalidProxyURL):
        return f"the proxy {proxy!r} is no address; {setting}"
    if proxies := [item for item in chain if isinstance(item, urllib3.exceptions.ProxyError)]:
        return f"the proxy {proxy} does not help: {_last(proxies[0])}; {setting}"
    if not proxy and public and (inner := _inner_addresses(host)):
        return f"DNS says that {host} is {', '.join(inner)}, inside your network; {ANOTHER}"
    for item in chain:
        if isinstance(item, ssl.SSLCertVerificationError) and item.verify_code not in OTHER_HOST:
            trust = "set REQUESTS_CA_BUNDLE to the file with the certificate of your network"
            return f"its certificate is not trusted, {item.verify_message}; {trust}"
        if isinstance(item, (ssl.SSLError, WebPage)):
            return f"{_last(item)}; {ANOTHER}"
    return None


def _last(error: BaseException) -> str:
    """The first cause of an error, in a few words."""
    cause = [*_chain(error)][-1]
    return getattr(cause, "verify_message", None) or getattr(cause, "strerror", None) or str(cause)
