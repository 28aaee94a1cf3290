"""The paper's simulations: small problems whose exact values are known."""
