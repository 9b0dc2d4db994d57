"""What a job costs: offers, prices, memory, throughput, estimates."""
