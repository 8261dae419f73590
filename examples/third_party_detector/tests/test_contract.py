from lyrics.testing import DetectorContract


class TestAcmeBoxes(DetectorContract):
    component = "acme-boxes"
