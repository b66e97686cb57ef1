"""dslight models under the evaluation harnesses of others; each module needs its harness only when it is used."""
