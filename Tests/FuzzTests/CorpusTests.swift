// SPDX-License-Identifier: Apache-2.0

import Foundation
import FuzzTargets
import Testing

/// Runs each input of the corpora, which hold the inputs that have once found a defect.
struct CorpusTests {
    private static let corpora = URL(filePath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().appending(path: "Fuzz/Corpora")

    @Test(arguments: FuzzTargets.all.map { $0.name })
    func `every input of the corpus keeps the invariants`(name: String) throws {
        let target = try #require(FuzzTargets.named(name))
        let files = try FileManager.default.contentsOfDirectory(
            at: Self.corpora.appending(path: name), includingPropertiesForKeys: nil)
        #expect(!files.isEmpty)
        for file in files.sorted(by: { $0.path < $1.path }) {
            var input = FuzzInput([UInt8](try Data(contentsOf: file)))
            #expect(throws: Never.self, "\(file.lastPathComponent)") { try target.run(&input) }
        }
    }

    @Test func `an empty input reads as zeroes`() {
        for target in FuzzTargets.all {
            var input = FuzzInput([])
            #expect(throws: Never.self, "\(target.name)") { try target.run(&input) }
        }
    }
}
