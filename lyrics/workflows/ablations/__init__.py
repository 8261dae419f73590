"""The paper's ablations as runs.

Table 5 (parts), Table 6 (shots), Figure 4a (amount of pre-training), Figure 4b (adaptation).
"""
