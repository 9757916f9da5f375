"""The CSL compiler: source, lexer, ast, parser, types, comptime, ir, placement, sema, codegen, driver."""
