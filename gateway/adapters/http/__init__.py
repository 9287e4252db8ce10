"""What adapters that speak HTTP share: the client, credentials, the allow list. The only place that knows httpx."""
