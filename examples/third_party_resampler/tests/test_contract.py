from lyrics.testing import QueryTransformerContract


class TestAcmeResampler(QueryTransformerContract):
    component = "acme-resampler"
