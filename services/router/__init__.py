"""The router: owns the adapter index; routes queries; serves the registry and takes outcomes."""
