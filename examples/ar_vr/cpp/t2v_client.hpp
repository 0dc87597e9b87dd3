// A client of the t2v-edge live server, version 1 of its protocol (docs/protocol.md).
//
//     t2v::Client client("ws://127.0.0.1:8765/live");
//     client.caption("a person is waving");
//     while (true) {
//         std::optional<t2v::Frame> frame = client.newest(0.1);
//         if (frame) upload(frame->pixels(), frame->width, frame->height);
//     }
//
// Captions may come from any thread, frames go to one. Everything throws t2v::Error, whose text says what to do.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>

#include "json.hpp"
#include "websocket.hpp"

namespace t2v {

inline constexpr std::size_t kHeaderBytes = 40, kMaxPayload = 1u << 26, kMaxText = 16384;
enum class Format : std::uint8_t { raw = 0, jpeg = 1, webp = 2 };

struct Settings {
    std::string token;           // where the server asks for one
    double fps = 0;              // 0: as the server likes it
    int width = 0, height = 0;   // 0: likewise
    Format format = Format::raw;  // raw RGB needs no decoder; jpeg takes a tenth to a thirtieth of the bytes
    int quality = 85;            // of jpeg and webp
    double timeout_s = 10;
};

struct Frame {
    Format format{};
    std::uint32_t generation = 0, sequence = 0;
    double seconds = 0;  // since the stream's start
    int width = 0, height = 0;
    Bytes message;
    std::size_t start = 0;

    // Raw: height rows of width RGB pixels, from the top, without padding.
    const std::uint8_t* pixels() const { return message.data() + start; }
    std::size_t size() const { return message.size() - start; }

    // Throws where a binary message is no frame.
    static Frame read(Bytes message) {
        const auto u = [&](std::size_t at, std::size_t bytes) {
            std::uint64_t value = 0;
            for (std::size_t i = bytes; i-- > 0;) value = value << 8 | message[at + i];
            return value;
        };
        if (message.size() < kHeaderBytes || std::memcmp(message.data(), "T2VF", 4) != 0 || message[4] != 1) {
            throw Error("a binary message is no frame of version 1; use a server of that version");
        }
        Frame frame;
        frame.start = static_cast<std::size_t>(u(6, 2));
        const std::uint64_t pts = u(16, 8), num = u(24, 4), den = u(28, 4), payload = u(36, 4);
        frame.generation = static_cast<std::uint32_t>(u(8, 4));
        frame.sequence = static_cast<std::uint32_t>(u(12, 4));
        frame.width = static_cast<int>(u(32, 2));
        frame.height = static_cast<int>(u(34, 2));
        const auto is_side = [](int side) { return side >= 1 && side <= 4096; };
        const bool sides = is_side(frame.width) && is_side(frame.height);
        if (message[5] > 2 || pts >> 53 != 0 || num == 0 || den == 0 || !sides) {
            throw Error("a frame's header has a value out of range; use a server of version 1");
        }
        frame.format = static_cast<Format>(message[5]);
        const bool fits = frame.start >= kHeaderBytes && payload >= 1 && frame.start + payload == message.size();
        if (!fits || (frame.format == Format::raw && payload != 3ull * frame.width * frame.height)) {
            throw Error("a frame is not as long as its header says; use a server of version 1");
        }
        frame.seconds = static_cast<double>(pts) * static_cast<double>(num) / static_cast<double>(den);
        frame.message = std::move(message);
        return frame;
    }
};

class Client {
  public:
    // Connects and is welcomed. on_text: every other message of the server, for who wants to see them.
    explicit Client(const std::string& url, const Settings& settings = {},
                    std::function<void(const json::Object&)> on_text = {})
        : socket_(kHeaderBytes + kMaxPayload, kMaxText), on_text_(std::move(on_text)) {
        socket_.connect(url, settings.token, settings.timeout_s);
        socket_.send(hello(settings));
        for (const Clock::time_point until = after(settings.timeout_s); !welcomed_;) {
            if (Clock::now() > until) throw Error("the server says no welcome; is this the live server's address?");
            if (const std::optional<Message> message = socket_.receive(0.1)) hear(*message);
        }
    }

    // Show this text, as UTF-8. What is being recognised still has final = false, and the same segment until it is.
    void caption(const std::string& text, bool final = true) {
        const std::lock_guard<std::mutex> lock(counting_);
        socket_.send("{\"type\":\"caption\",\"segment\":" + std::to_string(segment_) + ",\"revision\":" +
                     std::to_string(revision_) + ",\"text\":" + json::quote(text) + ",\"final\":" +
                     (final ? "true" : "false") + "}");
        revision_ = final ? 0 : revision_ + 1;
        segment_ += final;
    }

    void pause() { socket_.send(R"({"type":"control","action":"pause"})"); }
    void resume() { socket_.send(R"({"type":"control","action":"resume"})"); }
    void reset() { socket_.send(R"({"type":"control","action":"reset"})"); }

    // The newest frame: waits for one, passes over those that are old already. Nothing where none comes in time.
    std::optional<Frame> newest(double timeout_s) {
        std::optional<Frame> found;
        const Clock::time_point until = after(timeout_s);
        while (Clock::now() < until + kGrace) {
            const double left = std::chrono::duration<double>(until - Clock::now()).count();
            std::optional<Message> message = socket_.receive(found ? 0 : std::max(0.0, left));
            if (!message) return found;
            if (message->text) {
                hear(*message);
                if (found && found->generation < generation_) found.reset();  // a caption came behind it
                continue;
            }
            Frame frame = Frame::read(std::move(message->data));
            if (frame.generation < generation_) throw Error("the server sent a frame of an old caption");
            found = std::move(frame);
        }
        return found;  // messages come without end
    }

    // Of the newest caption that is shown; frames have this one or a higher.
    std::uint32_t generation() const { return generation_; }

    void close() {
        try {
            socket_.send(R"({"type":"bye","reason":"done"})", 1);
        } catch (const Error&) {  // it is closed
        }
        socket_.close();
    }

  private:
    static std::string hello(const Settings& wanted) {
        static constexpr const char* formats[] = {"raw", "jpeg", "webp"};
        std::string text = R"({"type":"hello","versions":[1],"format":")";
        text += formats[static_cast<int>(wanted.format)];
        text += "\",\"quality\":" + std::to_string(wanted.quality);
        if (wanted.fps > 0) text += ",\"fps\":" + json_number(wanted.fps);
        if (wanted.width > 0) {
            text += ",\"size\":[" + std::to_string(wanted.width) + "," + std::to_string(wanted.height) + "]";
        }
        return text + "}";
    }

    static std::string json_number(double value) {  // of at most six digits, whatever the locale
        const long thousandths = std::lround(value * 1000);
        return thousandths % 1000 == 0 ? std::to_string(thousandths / 1000)
                                       : "\"" + std::to_string(thousandths) + "/1000\"";
    }

    void hear(const Message& message) {
        if (!message.text) throw Error("the server sent a frame before its welcome");
        try {
            const json::Object object({reinterpret_cast<const char*>(message.data.data()), message.data.size()});
            const std::string type = object.text("type");
            if (type == "welcome") {
                if (object.number("version") != 1) throw Error("the server speaks another version than 1");
                welcomed_ = true;
            } else if (type == "showing" || type == "state") {
                const double generation = object.number("generation");
                if (!(generation >= 0 && generation <= 4294967295.0)) throw Error("a generation is out of range");
                generation_ = std::max<std::uint32_t>(generation_, static_cast<std::uint32_t>(generation));
            } else if (type == "error" && object.text("fatal") == "true") {
                throw Error(object.text("code") + ": " + object.text("message") + "; " + object.text("remedy"));
            } else if (type == "bye") {
                throw Error("the server says goodbye: " + object.text("reason"));
            }
            if (on_text_) on_text_(object);
        } catch (const std::invalid_argument& wrong) {
            throw Error(wrong.what());
        }
    }

    WebSocket socket_;
    std::function<void(const json::Object&)> on_text_;
    std::atomic<std::uint32_t> generation_{0};
    bool welcomed_ = false;
    std::mutex counting_;
    std::uint64_t segment_ = 0, revision_ = 0;
};

}  // namespace t2v
