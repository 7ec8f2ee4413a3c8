"""Dated prices, and usage turned into exact dollars. Pure."""
