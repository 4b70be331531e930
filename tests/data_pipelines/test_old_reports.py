"""Reports of earlier releases: what they call "photo" counts as a broken image."""

from data_pipelines.index.scan import current_reasons, merge_findings


def test_findings_of_earlier_releases_are_merged_with_new_ones():
    old = {"dropped": {"photo": 2, "no instances": 1}, "named": {"photo": ["a"]}}
    new = {"dropped": {"image": 1}, "named": {"image": ["b"]}}
    dropped, named = merge_findings([old, new])
    assert dropped == {"image": 3, "no instances": 1}
    assert named == {"image": ["a", "b"]}
    assert current_reasons({"image": 1, "annotation": 2}) == {"image": 1, "annotation": 2}
