"""Passwords in addresses are known as such, and ports and versions are none."""

import pytest

from subdistill_hf.config.addresses import has_password, without_passwords


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("s3://key:pw@bucket/x", "s3://bucket/x"),
        ("S3://key:p/w+x=@bucket", "S3://bucket"),
        ("simplecache::s3://key:p@w@bucket", "simplecache::s3://bucket"),
        ("ray://:pw@host:6379", "ray://host:6379"),
        ("https://key:123@host:80/x", "https://host:80/x"),
        ("--a=ftp://key:pw@host '--b' s3://k:p@c", "--a=ftp://host '--b' s3://c"),
        ('{"a": "s3://k:p@b", "c": "d@e"}', '{"a": "s3://b", "c": "d@e"}'),
    ],
)
def test_passwords_are_taken_out(text, without):
    assert has_password(text)
    assert without_passwords(text) == without
    assert not has_password(without)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a:b@c",
        "abfs://container@account.dfs.core.windows.net/x",
        "hdfs://host:8020/user/me@corp",
        "http://localhost:8000 or me@example.org",
        "hf://datasets/user/name@main",
        "a:b@c",
    ],
)
def test_other_addresses_stay_as_they_are(text):
    assert not has_password(text)
    assert without_passwords(text) == text
