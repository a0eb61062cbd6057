raise ImportError("this function cannot start")
