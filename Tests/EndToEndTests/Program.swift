// SPDX-License-Identifier: Apache-2.0

import VMKit

/// The built program, run to its end.
func runProgram(
    _ arguments: [String], environment: [String: String] = [:], folder: String? = nil
) throws -> CompletedProgram {
    try CompletedProgram([Server.binary] + arguments, environment: environment, folder: folder)
}

func runProgram(_ arguments: String...) throws -> CompletedProgram { try runProgram(arguments) }
