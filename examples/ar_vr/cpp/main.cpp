// t2v-view: captions from the command line and from standard input, frames to standard output or a file.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <thread>

#include "t2v_client.hpp"

namespace {

constexpr const char* kUsage = R"(usage: t2v-view URL [CAPTION] [--seconds N] [--fps N] [--size WxH]
                [--raw] [--ppm FILE] [--timeout N]

Shows CAPTION, and each line of standard input from then on. Frames a second go to standard error.
  --raw        every frame to standard output, as RGB
  --ppm FILE   the last frame as a picture
  --timeout N  seconds to wait for an answer (default: 10)
  --seconds N  stop after so long (default: when the server stops)
The token, where the server asks for one, comes from the variable T2V_EDGE_TOKEN.

  t2v-view ws://127.0.0.1:8765/live "a person is waving" --seconds 5 --ppm last.ppm
  t2v-view ws://127.0.0.1:8765/live "a person is dancing" --raw |
    ffplay -f rawvideo -pixel_format rgb24 -video_size 256x256 -
)";

struct Arguments {
    std::string url, caption, ppm;
    double seconds = 0;
    bool raw = false;
    t2v::Settings settings;
};

double number(const char* name, const char* text) {
    char* end = nullptr;
    const double value = std::strtod(text, &end);
    if (end == text || *end != '\0' || !(value > 0 && value < 1e9)) {
        throw t2v::Error(std::string(name) + " is '" + text + "', expected a number above 0");
    }
    return value;
}

Arguments read_arguments(int count, char** words) {
    Arguments found;
    int place = 0;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        const auto value = [&] {
            if (i + 1 == count) throw t2v::Error(word + " needs a value");
            return words[++i];
        };
        if (word == "--raw") found.raw = true;
        else if (word == "--ppm") found.ppm = value();
        else if (word == "--seconds") found.seconds = number("--seconds", value());
        else if (word == "--timeout") found.settings.timeout_s = number("--timeout", value());
        else if (word == "--fps") found.settings.fps = number("--fps", value());
        else if (word == "--size") {
            char more = 0;
            if (std::sscanf(value(), "%5dx%5d%c", &found.settings.width, &found.settings.height, &more) != 2) {
                throw t2v::Error("--size wants WxH, as 256x256");
            }
        }
        else if (word.rfind("--", 0) == 0) throw t2v::Error("there is no " + word);
        else if (place++ == 0) found.url = word;
        else if (place == 2) found.caption = word;
        else throw t2v::Error("one URL and one CAPTION; quote the caption");
    }
    if (found.url.empty()) throw t2v::Error("no URL");
    if (const char* token = std::getenv("T2V_EDGE_TOKEN")) found.settings.token = token;
    return found;
}

void write_ppm(const t2v::Frame& frame, const std::string& path) {
    std::FILE* file = std::fopen(path.c_str(), "wb");
    if (file == nullptr) throw t2v::Error("cannot write " + path);
    std::fprintf(file, "P6\n%d %d\n255\n", frame.width, frame.height);
    const bool whole = std::fwrite(frame.pixels(), 1, frame.size(), file) == frame.size();
    if (std::fclose(file) != 0 || !whole) throw t2v::Error("cannot write " + path);
}

void play(const Arguments& arguments) {
    t2v::Client client(arguments.url, arguments.settings, [](const t2v::json::Object& message) {
        const std::string type = message.text("type");
        if (type == "showing") std::cerr << "showing: " << message.text("text") << std::endl;
        if (type == "error") std::cerr << message.text("message") << "; " << message.text("remedy") << std::endl;
    });
    if (!arguments.caption.empty()) client.caption(arguments.caption);
    // Detached: it waits for a line, which may never come; the process ends without it.
    std::thread([&client] {
        for (std::string line; std::getline(std::cin, line);) {
            try {
                if (!line.empty()) client.caption(line);
            } catch (const t2v::Error&) {
                return;  // the other thread says why
            }
        }
    }).detach();
    const t2v::Clock::time_point start = t2v::Clock::now();
    t2v::Clock::time_point told = start;
    t2v::Frame last;
    int frames = 0, all = 0;
    while (arguments.seconds == 0 || t2v::Clock::now() < start + std::chrono::duration<double>(arguments.seconds)) {
        if (std::optional<t2v::Frame> frame = client.newest(0.1)) {
            last = std::move(*frame);
            ++frames, ++all;
            if (arguments.raw && std::fwrite(last.pixels(), 1, last.size(), stdout) != last.size()) break;
        }
        const double elapsed = std::chrono::duration<double>(t2v::Clock::now() - told).count();
        if (elapsed >= 1) {
            std::fprintf(stderr, "%.1f fps\n", frames / elapsed);
            told = t2v::Clock::now(), frames = 0;
        }
    }
    client.close();
    if (!arguments.ppm.empty()) {
        if (all == 0) throw t2v::Error("no frame came; give a caption");
        write_ppm(last, arguments.ppm);
    }
    const std::chrono::duration<double> took = t2v::Clock::now() - start;
    std::fprintf(stderr, "%d frames in %.1f s\n", all, took.count());
    std::fflush(stdout);
}

}  // namespace

int main(int count, char** words) {
    Arguments arguments;
    try {
        if (count > 1 && std::strcmp(words[1], "--help") == 0) {
            std::fputs(kUsage, stdout);
            return 0;
        }
        arguments = read_arguments(count, words);
    } catch (const t2v::Error& error) {
        std::fprintf(stderr, "t2v-view: %s\n%s", error.what(), kUsage);
        return 2;
    }
    int code = 0;
    try {
        play(arguments);
    } catch (const t2v::Error& error) {
        std::fprintf(stderr, "t2v-view: %s\n", error.what());
        code = 1;
    }
    std::fflush(nullptr);
    std::_Exit(code);  // the thread that reads standard input may be waiting still
}
