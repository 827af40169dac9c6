// SPDX-License-Identifier: Apache-2.0

import Foundation
import Testing

/// The parts of the documentation that a program can check.
struct DocumentationTests {
    private let root = URL(filePath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

    private func text(_ path: String) throws -> String {
        try String(contentsOf: root.appending(path: path), encoding: .utf8)
    }

    private func files(under folder: String, suffix: String) -> [String] {
        let all = FileManager.default.enumerator(atPath: root.appending(path: folder).path)
        return (all?.compactMap { $0 as? String } ?? []).filter { $0.hasSuffix(suffix) }.sorted()
            .map { "\(folder)/\($0)" }
    }

    @Test func `every limit is documented`() throws {
        let page = try text("docs/limits.md")
        for file in files(under: "Sources", suffix: "/Limits.swift") {
            for match in try text(file).matches(of: /static let (\w+)/) {
                #expect(page.contains("`\(match.1)`"), "\(file) has \(match.1)")
            }
        }
    }

    @Test func `links between pages have targets`() throws {
        for page in ["README.md"] + files(under: "docs", suffix: ".md") {
            let folder = root.appending(path: page).deletingLastPathComponent()
            for match in try text(page).matches(of: /\]\(([^)#:]+)\)/) {
                let target = folder.appending(path: String(match.1)).path
                #expect(
                    FileManager.default.fileExists(atPath: target), "\(page) links to \(match.1)")
            }
        }
    }

    @Test func `links to headings have targets`() throws {
        for page in ["README.md"] + files(under: "docs", suffix: ".md") {
            let folder = root.appending(path: page).deletingLastPathComponent()
            for match in try text(page).matches(of: /\]\(([^)#:]*)#([^)]+)\)/) {
                let target =
                    match.1.isEmpty
                    ? root.appending(path: page) : folder.appending(path: String(match.1))
                let headings = try String(contentsOf: target, encoding: .utf8)
                    .matches(of: /(?m)^#+ (.+)$/).map { Self.anchor(of: $0.1) }
                #expect(headings.contains(String(match.2)), "\(page) links to #\(match.2)")
            }
        }
    }

    /// The anchor that GitHub gives a heading.
    private static func anchor(of heading: Substring) -> String {
        heading.lowercased().filter { $0.isLetter || $0.isNumber || " -_".contains($0) }
            .replacing(" ", with: "-")
    }

    @Test func `source files that pages name exist`() throws {
        let sources =
            files(under: "Sources", suffix: ".swift") + files(under: "Tests", suffix: ".swift")
            + ["Package.swift"]
        for page in ["README.md"] + files(under: "docs", suffix: ".md") {
            for match in try text(page).matches(of: /`([\w+\/]+\.swift)`/) {
                #expect(
                    sources.contains { "/\($0)".hasSuffix("/\(match.1)") },
                    "\(page) names \(match.1)")
            }
        }
    }

    @Test func `each source file names its license`() throws {
        let sources =
            files(under: "Sources", suffix: ".swift") + files(under: "Tests", suffix: ".swift")
        for file in sources {
            #expect(
                try text(file).hasPrefix("// SPDX-License-Identifier: Apache-2.0\n"), "\(file)")
        }
    }
}
