"""Generated from protovalidate's rules, `proto/buf/validate`, by `make proto`; only this line is written by hand."""
