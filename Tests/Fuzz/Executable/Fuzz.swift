// SPDX-License-Identifier: Apache-2.0

import FuzzTargets
import Glibc

// The two functions that libFuzzer calls; its runtime has `main`. The target is chosen with
// `--target=NAME`: libFuzzer ignores arguments that begin with two hyphens.

nonisolated(unsafe) private var target: (any FuzzTarget.Type)?

private func printError(_ line: String) {
    let bytes = Array("\(line)\n".utf8)
    _ = write(STDERR_FILENO, bytes, bytes.count)
}

@_cdecl("LLVMFuzzerInitialize")
public func initialize(
    _ count: UnsafeMutablePointer<CInt>,
    _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>
) -> CInt {
    for index in 1..<max(Int(count.pointee), 1) {
        guard let argument = arguments.pointee[index] else { continue }
        let text = String(cString: argument)
        if text.hasPrefix("--target=") { target = FuzzTargets.named(String(text.dropFirst(9))) }
    }
    if target == nil {
        let names = FuzzTargets.all.map { $0.name }.joined(separator: ", ")
        printError("--target=NAME is one of: \(names)")
        exit(2)
    }
    // A write to a socket that the other side has closed must not end the process.
    signal(SIGPIPE, SIG_IGN)
    return 0
}

@_cdecl("LLVMFuzzerTestOneInput")
public func testOneInput(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    var input = FuzzInput([UInt8](UnsafeRawBufferPointer(start: bytes, count: count)))
    do {
        try target?.run(&input)
    } catch {
        printError("=== violation: \(error)")
        abort()
    }
    return 0
}
