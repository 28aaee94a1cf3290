"""The paper's simulations: small problems in which everything is known."""
