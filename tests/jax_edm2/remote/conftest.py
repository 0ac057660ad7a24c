import pytest


@pytest.fixture(scope="module")
def file(digits_checkpoint):
    return digits_checkpoint.read_bytes()


@pytest.fixture
def gs(s3, monkeypatch):
    """The same server, as a bucket of Google's: its XML interface is S3's."""
    account = f'{{"gcs_base_url": "{s3.environment["AWS_ENDPOINT_URL"]}", "disable_oauth": true, "client_email": "", '
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", account + '"private_key": "", "private_key_id": ""}')
    return s3
