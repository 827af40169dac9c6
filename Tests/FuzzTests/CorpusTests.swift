// SPDX-License-Identifier: Apache-2.0

import Foundation
import FuzzTargets
import Testing

/// Every input of the corpora, those that once found something among them, is run again.
struct CorpusTests {
    private static let corpora = URL(filePath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().appending(path: "Fuzz/Corpora")

    @Test(arguments: FuzzTargets.all.map { $0.name })
    func `no input of the corpus breaks a promise`(name: String) throws {
        let target = try #require(FuzzTargets.named(name))
        let files = try FileManager.default.contentsOfDirectory(
            at: Self.corpora.appending(path: name), includingPropertiesForKeys: nil)
        #expect(!files.isEmpty)
        for file in files.sorted(by: { $0.path < $1.path }) {
            var input = FuzzInput([UInt8](try Data(contentsOf: file)))
            #expect(throws: Never.self, "\(file.lastPathComponent)") { try target.run(&input) }
        }
    }

    @Test func `an input that ends early goes on with zeroes`() {
        for target in FuzzTargets.all {
            var input = FuzzInput([])
            #expect(throws: Never.self, "\(target.name)") { try target.run(&input) }
        }
    }
}
