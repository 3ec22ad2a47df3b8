"""An experiment: does training collapse when step rewards can be farmed, with and without gates?"""
