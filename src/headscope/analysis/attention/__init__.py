"""The reasons why a head looks where it looks: attention scores split by what queries and keys are made of."""
